package hudson.security

import jenkins.model.Jenkins
import org.acegisecurity.Authentication

/** Rights as the knob has them: to everything, or to one job. */
class ACL {
    static final Authentication SYSTEM = new Authentication('SYSTEM')
    private final String job

    ACL(String job) {
        this.job = job
    }

    boolean hasPermission(Authentication who, Permission permission) {
        def rights = Jenkins.get().truth().rights
        if (!rights.containsKey(who.name)) {
            return true
        }
        def enough = ['Overall.Administer', permission.id, "${permission.id}/${job}".toString()]
        return !rights[who.name].disjoint(enough)
    }
}
