package com.cloudbees.plugins.credentials.common

interface StandardUsernameCredentials {
    String getId()

    String getUsername()
}
