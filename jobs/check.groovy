// Run by check.py in the script console of Jenkins, as an administrator. Reads only, and prints one line of JSON: who
// can do what, the credential if it is there, and the address that Jenkins is configured with. ASKED is JSON in base64.

import com.cloudbees.plugins.credentials.CredentialsProvider
import com.cloudbees.plugins.credentials.common.StandardUsernameCredentials
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import hudson.model.Computer
import hudson.model.Item
import hudson.model.User
import hudson.security.ACL
import jenkins.model.Jenkins
import jenkins.model.JenkinsLocationConfiguration
import org.acegisecurity.userdetails.UsernameNotFoundException

def asked = new JsonSlurper().parseText(new String('ASKED'.decodeBase64(), 'UTF-8'))
def jenkins = Jenkins.get()
def permissions = [
    'Overall/Read': Jenkins.READ,
    'Agent/Create': Computer.CREATE, 'Agent/Configure': Computer.CONFIGURE, 'Agent/Disconnect': Computer.DISCONNECT,
    'Agent/Delete': Computer.DELETE,
    'Job/Read': Item.READ, 'Job/Build': Item.BUILD,
]

// Null for a user whom Jenkins has never seen, or who is no longer in its directory of users.
def loginOf = { id ->
    try {
        return User.getById(id, false)?.impersonate()
    } catch (UsernameNotFoundException ignored) {
        return null
    }
}
// A right is 'Agent/Create', or 'Job/Build JOB' for one job; if there is no such job yet, the right to all jobs counts.
def has = { login, right ->
    def (name, job) = right.split(' ', 2) + [null]
    def scope = (job ? jenkins.getItemByFullName(job) : null) ?: jenkins
    return scope.getACL().hasPermission(login, permissions[name])
}
def rights = asked.users.collectEntries { user, wanted ->
    def login = loginOf(user)
    return [user, login ? wanted.findAll { has(login, it) } : null]
}
def credential = CredentialsProvider.lookupCredentials(StandardUsernameCredentials, jenkins, ACL.SYSTEM, [])
    .find { it.id == asked.credential }
println(JsonOutput.toJson([
    // Not getRootUrl(): if Jenkins is configured with no address, that returns the one that this request used.
    url: JenkinsLocationConfiguration.get().getUrl(),
    rights: rights,
    credential: credential ? [kind: credential.getClass().getSimpleName(), named: credential.descriptor.displayName,
                              user: credential.username] : null,
]))
